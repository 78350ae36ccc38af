"""The Python package `websockets`, as a server and as a client, for `interop.rs`.

peer.py server [CHAIN KEY]     echoes; prints "listening PORT"
peer.py client URL [AUTHORITY] runs the script against a server; exits 0 if all was right

SOCKEYE_DEFLATE, if it is set, asks for permessage-deflate.
"""

import asyncio
import os
import ssl
import sys

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

SIZES = [0, 1, 125, 126, 65_535, 65_536, 1 << 20]
DEFLATE = "deflate" if os.environ.get("SOCKEYE_DEFLATE") else None
CODES = [1000, 1001, 1012, 3001, 4999]


def records(number):
    return "".join(f'{{"id":{number * 100 + i},"name":"user {i % 7}"}},' for i in range(100))


async def echo(ws):
    async for message in ws:
        if message == "ping":
            await (await ws.ping(b"are you there"))
            await ws.send("pong")
        elif message == "fragments":
            await ws.send(["one ", "two ", "three"])
        elif isinstance(message, str) and message.startswith("close "):
            await ws.close(int(message[6:]), "bye")
        else:
            await ws.send(message)


async def server(chain=None, key=None):
    context = None
    if chain:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
    async with serve(echo, "127.0.0.1", 0, ssl=context, subprotocols=["b"], max_size=1 << 21, compression=DEFLATE) as it:
        print("listening", it.sockets[0].getsockname()[1], flush=True)
        await it.serve_forever()


async def client(url, authority=None):
    options = {"max_size": 1 << 21, "subprotocols": ["a", "b"], "compression": DEFLATE}
    if authority:
        options["ssl"] = ssl.create_default_context(cafile=authority)
    async with connect(url, **options) as ws:
        assert ws.subprotocol == "b", ws.subprotocol
        for size in SIZES:
            for message in ["x" * size, b"\0" * size]:
                await ws.send(message)
                assert await ws.recv() == message, size
        assert bool(ws.protocol.extensions) == bool(DEFLATE), ws.protocol.extensions
        for number in range(20):
            message = records(number)
            await ws.send(message)
            assert await ws.recv() == message, number
        await (await ws.ping(b"hello"))
        await ws.send(["frag", "men", "", "ted é"])
        assert await ws.recv() == "fragmented é"
        await ws.send("ping")
        assert await ws.recv() == "pong"
    for code in CODES:
        async with connect(url, **options) as ws:
            await ws.close(code, "bye")
            assert ws.close_code == code, (code, ws.close_code)
        async with connect(url, **options) as ws:
            await ws.send(f"close {code}")
            try:
                await ws.recv()
                raise AssertionError("it goes on")
            except websockets.exceptions.ConnectionClosed as closed:
                assert closed.rcvd.code == code, (code, closed)
                assert closed.rcvd.reason == "bye", closed


asyncio.run({"server": server, "client": client}[sys.argv[1]](*sys.argv[2:]))
