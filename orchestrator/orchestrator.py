"""`python -m orchestrator.main` from inside this directory: leads to the package, one directory up.

A checkout may have any name, and `cd orchestrator` may lead into it or into the package in it.
"""

import sys
from importlib import import_module
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)
if __name__ == "__main__":
    # The command that `run` starts for each process: python -m orchestrator consumer
    import_module("orchestrator.__main__").main()
del sys.modules["orchestrator"]
import_module("orchestrator")
