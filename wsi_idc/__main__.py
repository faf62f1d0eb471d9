"""Run ``wsi-idc`` as ``python -m wsi_idc``, for machines without the script on their PATH."""

import sys

from wsi_idc.cli.main import main

if __name__ == "__main__":
    sys.argv[0] = "wsi-idc"  # the program name in usage lines and in the provenance of files
    main()
