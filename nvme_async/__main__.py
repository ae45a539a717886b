"""`python -m nvme_async` is the nvme-async command."""

from nvme_async.cli.main import main

if __name__ == "__main__":
    main()
