"""What every test here has: markers for tests that need a kernel, and guests to run them in."""

import sys
from pathlib import Path

# Behind everything else: where igrun is installed, that one is tested.
sys.path.append(str(Path(__file__).parent))

pytest_plugins = ["tests.vm.plugin"]
