"""Serve a notebook by Voila to whoever has its token, and to nobody under a foreign host name.

`dev.py app` runs this. Voila itself asks for no token, answers to every name that a web page may
give this machine, and opens the browser without the token that it was told to ask for.
"""

import html
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

from voila.app import Voila


class App(Voila):
    """Voila with a token and a check of the Host header; loopback addresses always pass it."""

    def init_settings(self) -> dict[str, Any]:
        """Voila's settings, with the check that it turns off."""
        if not self.token:
            # A new one at each start, or that of JUPYTER_TOKEN: a command line is read by others.
            self.token, self.auto_token = None, True
        hosts = {"allow_remote_access": False, "local_hostnames": ["localhost"]}
        return {**super().init_settings(), **hosts}

    def launch_browser(self) -> None:
        """Open the page by a file that only this user reads, so that no command line has it."""
        address = f"{self.connection_url}?token={self.identity_provider.token}"
        with tempfile.NamedTemporaryFile("w", suffix=".html", delete=False) as page:
            page.write(f'<meta http-equiv="refresh" content="0; url={html.escape(address)}">')
        webbrowser.open(Path(page.name).as_uri(), new=self.webbrowser_open_new)


if __name__ == "__main__":
    App.launch_instance()
