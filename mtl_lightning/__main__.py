"""``python -m mtl_lightning``."""

from mtl_lightning.main import main

if __name__ == "__main__":
    main()
