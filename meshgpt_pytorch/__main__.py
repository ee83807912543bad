"""``python -m meshgpt_pytorch``: the command ``meshgpt``."""

from meshgpt_pytorch.cli import main

raise SystemExit(main())
