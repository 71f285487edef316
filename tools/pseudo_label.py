#!/usr/bin/env python
"""Labels images by one or several trained detectors, for a student to be trained on.

    python tools/pseudo_label.py all --images FOLDER --teacher big=CONFIG.yaml,WEIGHTS.pth \\
        --output output/pseudo
    python train_net.py --config-file STUDENT.yaml \\
        DATASETS.TRAIN "('pseudo_labels:output/pseudo/export',)"

The stages are generate, merge, filter, export, report and sheet; each reads and writes files, and
can be repeated by itself (``--run DIR``). ``verify`` checks what was written. Whatever stops
generate, the same command goes on; several of them, on several machines, share the work. Mistakes
end with one sentence and exit code 2.
"""

import sys

from kd_d2.engine import user_errors
from kd_d2.projects.pseudo_label.command_line import build_parser, run_stages


def main(argv: list[str] | None = None) -> int:
    args = build_parser(__doc__).parse_args(argv)
    with user_errors():
        return run_stages(args)


if __name__ == "__main__":
    sys.exit(main())
