"""``python -m wsi_idc`` is ``wsi-idc``, where scripts are not on the path."""

import sys

from wsi_idc.cli.main import main

if __name__ == "__main__":
    sys.argv[0] = "wsi-idc"  # name in usage lines and provenance
    main()
