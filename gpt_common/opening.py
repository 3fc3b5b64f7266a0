"""Opening a run by a short name, for scripts: `from gpt_common.opening import open_run, write_run_files`."""

from gpt_common.training.opening import Opening, open_run
from gpt_common.training.session import write_run_files

__all__ = ["Opening", "open_run", "write_run_files"]
