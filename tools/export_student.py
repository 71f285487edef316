#!/usr/bin/env python
"""Take the student, or its peer, out of a distillation checkpoint.

    python tools/export_student.py --config-file output/config.yaml \
        --weights output/model_final.pth --output exported

writes exported/model_student.pth and exported/student.yaml; with --peer, of a run of two networks
that learn together, exported/model_peer.pth and exported/peer.yaml.
"""

import argparse

import kd_d2  # noqa: F401  (registers what the config may name)
from kd_d2.checkpoint import local_weights_path, read_checkpoint
from kd_d2.engine import check_student_state, export_peer, export_student, load_config, user_errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, help="config of the run")
    parser.add_argument("--weights", required=True, help="a checkpoint of the run")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--peer", action="store_true", help="the network beside the student")
    args = parser.parse_args()
    with user_errors():
        state = read_checkpoint(local_weights_path(args.weights))["model"]
        cfg = load_config(args.config_file)
        check_student_state(state, cfg)
        export = export_peer if args.peer else export_student
        for path in export(state, cfg, args.output):
            print(path)


if __name__ == "__main__":
    main()
