"""`python -I -S …/keeper`: this directory as a program, without the package around it."""

import os
import sys

# When run like this, the directory itself is on the path; its modules must be found as one package,
# and must not shadow others.
del sys.path[0]
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from keeper.process import main  # type: ignore[import-not-found]  # noqa: E402

sys.exit(main())
