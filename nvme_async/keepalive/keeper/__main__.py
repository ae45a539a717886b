"""`python -I -S …/keeper`: this folder as a program, without the package around it."""

import os
import sys

# The folder itself is on the path when it is run like this; its modules are to be found as one
# package, and to shadow nobody's.
del sys.path[0]
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from keeper.process import main  # type: ignore[import-not-found]  # noqa: E402

sys.exit(main())
