"""``python -m mtl_lightning``."""

import sys

try:
    from mtl_lightning.main import main
except KeyboardInterrupt:  # the imports take some seconds
    sys.exit(130)

if __name__ == "__main__":
    main()
