"""What every test here has: markers, guests to run tests in, and the table of registries and clients."""

import sys
from pathlib import Path

# Behind everything else: where igrun is installed, that one is tested.
sys.path.append(str(Path(__file__).parent))

pytest_plugins = ["tests.vm.plugin", "tests.registry.plugin", "tests.containers.plugin"]
