# SPDX-License-Identifier: Apache-2.0
"""A barrier at which ranks wait for each other, however long the slowest takes to come.

gloo does not wait for long, and Paddle's other means cost more (paddle_quirks: gloo_gives_up);
saving a checkpoint or reading from a slow disk may well take longer. This takes a tenth of a
millisecond, and notices at once when a process has ended.
"""

import hmac
import os
import socket
from typing import Protocol

from paddleseg_deeplab.utils.errors import RunStopped

_KEY = "paddleseg_deeplab/barrier"


class Store(Protocol):
    """Paddle's key-value store of a run, as far as it is used here."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def add(self, key: str, amount: int) -> int: ...


class Barrier:
    """Connects every rank with the first one.

    Args:
        rank, size (int): This process and how many there are.
        store (Store): Tells the others the port.
        host (str): Name or address of the first rank's machine.
        patience (float): Seconds to wait for the others.

    Raises:
        OSError: No connection.
    """

    def __init__(self, rank: int, size: int, store: Store, host: str, patience: float) -> None:
        self.rank = rank
        self.size = size
        self.patience = patience
        self._peers: dict[int, socket.socket] = {}
        if rank == 0:
            self._listen(store, host)
        else:
            port, token = store.get(_KEY).decode().split()
            peer = socket.create_connection((host, int(port)), timeout=patience)
            self._add(0, peer)
            peer.sendall(bytes.fromhex(token) + rank.to_bytes(4, "big"))

    def _listen(self, store, host):
        token = os.urandom(16)  # known to those only who reach the store
        with socket.create_server((host, 0), backlog=self.size) as server:
            server.settimeout(self.patience)
            store.set(_KEY, f"{server.getsockname()[1]} {token.hex()}")
            while len(self._peers) < self.size - 1:
                peer = server.accept()[0]
                peer.settimeout(10.0)
                try:
                    said = _receive(peer, 20)
                except OSError:
                    said = b""
                if hmac.compare_digest(said[:16], token):
                    self._add(int.from_bytes(said[16:], "big"), peer)
                else:
                    peer.close()

    def _add(self, rank, peer):
        peer.settimeout(self.patience)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peers[rank] = peer

    def wait(self) -> None:
        """Returns when all ranks have called it as often.

        Raises:
            RunStopped: A rank is gone, or did not come in time.
        """
        peers = sorted(self._peers.items())
        if self.rank == 0:
            for rank, peer in peers:
                self._listen_to(rank, peer)
        for rank, peer in peers:
            try:
                peer.sendall(b".")
            except OSError as error:
                raise self._gone(rank) from error
        if self.rank:
            self._listen_to(*peers[0])

    def _listen_to(self, rank, peer):
        try:
            _receive(peer, 1)
        except TimeoutError as error:
            raise RunStopped(
                f"process {self.rank} of {self.size} waited {self.patience:.0f} s for process "
                f"{rank}. Where it is that slow, raise PADDLE_PG_TIMEOUT (milliseconds)."
            ) from error
        except OSError as error:
            raise self._gone(rank) from error

    def _gone(self, rank):
        return RunStopped(
            f"process {rank} of {self.size} is gone (killed, out of memory, or its machine or the "
            f"network failed), so process {self.rank} stops; --resume_model auto goes on from the "
            "last checkpoint."
        )


def _receive(peer, count):
    data = b""
    while len(data) < count:
        part = peer.recv(count - len(data))
        if not part:
            raise ConnectionError("closed")
        data += part
    return data
