"""Three seconds to find out what TFDS needs 204 seconds of retries for: whether a download can start at all."""

import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable

TIMEOUT_SECONDS = 3.0
# Where TFDS keeps checksums and metadata; asked when a builder does not say what it downloads.
FALLBACK_URL = "https://storage.googleapis.com/tfds-data"


def answers(url: str) -> bool:
    """Whether a server answers at `url` in any way, through the proxies of the environment."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # an HTTP status is an answer; some hosts refuse HEAD
    except (OSError, ValueError, http.client.HTTPException):
        return False


def require_reachable(name: str, urls: Iterable[str], embedded: Iterable[str]) -> None:
    """Raises unless the first download of a dataset can begin.

    Args:
      name: The dataset, for the message.
      urls: What its builder downloads; may be empty.
      embedded: Names of the datasets that need no network.

    Raises:
      ConnectionError: If the host does not answer within `TIMEOUT_SECONDS`; names the embedded datasets.
    """
    url = next((u for u in urls if u.startswith(("http://", "https://"))), FALLBACK_URL)
    reached: list[bool] = []
    # A thread, because name resolution has no timeout of its own.
    worker = threading.Thread(target=lambda: reached.append(answers(url)), daemon=True)
    worker.start()
    worker.join(TIMEOUT_SECONDS)
    if reached != [True]:
        raise ConnectionError(
            f"Dataset {name!r} is not prepared in the data directory and {url} does not answer within "
            f"{TIMEOUT_SECONDS:g} s, so it cannot be downloaded. Use --dataset {' or --dataset '.join(embedded)} (no "
            "network needed), or point --data-dir (or TFDS_DATA_DIR) at a directory where it is prepared."
        )
