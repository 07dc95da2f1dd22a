"""What every test here has: markers, guests to run tests in, and the table of registries and clients."""

import signal
import sys
from pathlib import Path

from hypothesis import settings

# Behind everything else: where igrun is installed, that one is tested.
sys.path.append(str(Path(__file__).parent))

# A shell starts what it puts into the background with Ctrl-C ignored, and so would everything be that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# With --hypothesis-profile=many, properties are tried with ten times as many examples.
settings.register_profile("many", max_examples=1000)

pytest_plugins = [
    *("tests.vm.plugin", "tests.leftovers", "tests.typetable", "tests.confusion"),
    *("tests.registry.plugin", "tests.containers.plugin"),
]
