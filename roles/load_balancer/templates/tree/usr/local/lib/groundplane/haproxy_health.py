# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether HAProxy answers: Keepalived runs this every second, as an account that may do nothing else.

Usage: haproxy_health.py SOCKET SECONDS. Exit 0: the worker that has the listening sockets answered in time; else 1.
"""

from __future__ import annotations

import socket
import sys

REQUEST = b"GET / HTTP/1.0\r\n\r\n"
EXPECTED = b"HTTP/1.1 200"


def answers(path: str, seconds: float) -> bool:
    """Ask once over HTTP on a Unix socket.

    Args:
        path: the socket.
        seconds: how long each step may take.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(path)
            connection.sendall(REQUEST)
            return connection.recv(64).startswith(EXPECTED)
        except OSError:
            return False


if __name__ == "__main__":
    sys.exit(0 if answers(sys.argv[1], float(sys.argv[2])) else 1)
