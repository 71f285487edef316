"""What teachers found, read from their raw shards in unified classes."""

from .class_map import Unified
from .run_folder import RunError, RunFolder, hash_of
from .shards import Shard, ShardContents, done_record, read_shard, undone


def check_generated(run: RunFolder) -> None:
    """
    Raises:
        RunError: a teacher has not yet looked at all images.
        ShardError: shards are of another run.
    """
    for teacher in run.teachers:
        missing = undone(run.raw(teacher), run.shards, teacher.run)
        if missing:
            raise RunError(
                f"{len(missing)} of {len(run.shards)} shards of {teacher.name} in {run.folder} are "
                "not complete: run the stage generate until it is done."
            )


def raw_hashes(run: RunFolder) -> dict[str, str]:
    """Name of each shard -> hash of what all teachers have found in its images, or not read."""
    folders = [run.raw(teacher) for teacher in run.teachers]
    return {
        shard.name: hash_of([done_record(folder, shard) for folder in folders])
        for shard in run.shards
    }


def read_unified(run: RunFolder, teacher: int, shard: Shard, unified: Unified) -> ShardContents:
    """A raw shard with unified classes, and without those that are dropped.

    Args:
        teacher: its number in the run.

    Raises:
        ShardError: it is not as it was written.
    """
    contents = read_shard(run.raw(run.teachers[teacher]), shard)
    d = contents.detections
    d.category = unified.lookup[teacher][d.category]
    d.teacher[:] = teacher
    contents.detections = d[d.category >= 0]
    return contents
