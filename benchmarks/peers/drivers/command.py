"""The command of this project: `command.py MODEL OUTPUT OPTIONS...`."""

import sys

from onnxslim.cli import main

sys.exit(main())
