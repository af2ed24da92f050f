"""schemathesis against `samadapt serve`: what OpenAPI allows is answered, what it forbids is refused, nothing breaks.

    make fuzz-api ARGS="--max-examples 300"        # the rest goes to schemathesis

Two runs of a few steps are trained first, on generated data. The server asks for a token, which schemathesis sends.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from fakes import two_class_archive
from samadapt.phantom import make_phantom
from serving import running
from test_serving import SECRET, train

CONFIG = Path(__file__).parent / "schemathesis.toml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schemathesis", default="schemathesis", help="the program")
    args, further = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        heart = train(make_phantom(folder / "data", patients=4, size=48, slices=3), folder / "heart", "fused")
        two_class_archive(folder / "two.npz")
        photos = train(folder / "two.npz", folder / "photos", "attentive_probe")
        with running([heart, photos], token=SECRET) as found:
            command = [args.schemathesis, "--config-file", str(CONFIG), "run"]
            command += [
                f"http://127.0.0.1:{found.port}/openapi.json",
                "--header",
                f"Authorization: Bearer {SECRET}",
            ]
            done = subprocess.run([*command, *further], cwd=folder, check=False)
            left = found.left_behind
        print("files left behind:", len(left))
    sys.exit(done.returncode or bool(left))


if __name__ == "__main__":
    main()
