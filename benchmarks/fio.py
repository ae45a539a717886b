#!/usr/bin/env python3
"""A benchmark with fio's job language and reports, on nvme_async. The same program as `nvme-async
bench`; see --help.
"""

import sys

from nvme_async.fio.main import main

if __name__ == "__main__":
    sys.exit(main())
