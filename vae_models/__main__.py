"""Entry point of ``vae-models`` and ``python -m vae_models``: one clear line where the ``vae`` extra is missing."""

import sys


def main() -> int:
    try:
        from vae_models.cli.main import main as run
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed; in a clone of the repository: pip install '.[vae]'"
        print(f"vae-models: {message}", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
