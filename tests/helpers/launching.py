"""Launch scripts run against recorders in place of clusters."""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
MAIN = ["--config=configs/mine.py", "--config.sample.prompts=('a b',)"]


class Place:
    """A folder to start scripts in; `command(name, script)` puts a program first on the PATH there."""

    def __init__(self, folder):
        self.folder, self.record = folder, folder / "record"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_", "PYTHON"))
        }
        self.environment |= {"PATH": f"{folder}/bin:{os.environ['PATH']}", "RECORD": str(self.record)}
        (folder / "bin").mkdir()

    def command(self, name, script="", folder="bin"):
        """A program that writes its name and arguments down, quoted for a shell, and then runs `script`."""
        path = self.folder / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\n(printf "%q " {name} "$@" && echo) >>"$RECORD"\n{script}\n')
        path.chmod(0o755)
        return path

    def run(self, script, *arguments, **environment):
        command = [str(LAUNCH / script), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment | environment, capture_output=True, text=True, timeout=60
        )

    def recorded(self):
        return commands(self.record.read_text()) if self.record.exists() else []


def commands(text):
    return [shlex.split(line) for line in text.splitlines()]


def tool(name):
    return str(Path(sysconfig.get_path("scripts")) / name)
