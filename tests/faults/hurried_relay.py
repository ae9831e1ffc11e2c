"""The relay that commits its markers again every so many seconds: the first argument."""

import sys

from orchestrator.__main__ import main
from outbox import session as tenure

if __name__ == "__main__":
    tenure.MARKER_REFRESH_S = float(sys.argv[1])
    main(["relay"])
