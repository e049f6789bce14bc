"""Entry point of ``vae-models`` and ``python -m vae_models``: one clear line where the ``vae`` extra is missing."""

import sys


def main() -> int:
    try:
        from vae_models import cli
    except ModuleNotFoundError as error:
        print(f"vae-models: {error.name} is not installed; pip install 'ar1-dist[vae]'", file=sys.stderr)
        return 2
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
