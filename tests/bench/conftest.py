"""What tests of the bench share: the runtime's fake detector, found beside its own tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "runtime"))
