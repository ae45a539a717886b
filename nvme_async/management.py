"""Management of controllers and namespaces: see nvme_async.driver.management."""

from nvme_async.driver.management import *  # noqa: F403
from nvme_async.driver.management import __all__ as __all__
