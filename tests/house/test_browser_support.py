"""The page fixture catches planted script errors and requests that leave the machine."""

import pytest

from browser_support import watched_page

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    "script",
    [
        "throw new Error('planted')",
        "Promise.reject(new Error('planted'))",
        "fetch('https://planted.example').catch(() => {})",
        "new WebSocket('wss://planted.example')",
        "new Image().src = 'https://planted.example/pixel.png'",
    ],
)
def test_page_tells_of_errors_and_outside_requests(browser, script):
    def visit():
        with watched_page(browser) as page:
            page.set_content(f"<script>{script}</script>")
            page.wait_for_timeout(200)

    with pytest.raises(AssertionError, match="planted"):
        visit()
