"""The broadcast of FastAPI's WebSocket tutorials, measured beside Tidewire: a list of connections, and a loop that sends to
each of them in turn. On uvicorn with uvloop and websockets, as uvicorn[standard] brings it; access log and lifespan are off,
and so is compression, which the generator does not offer anyway."""

import socket
import sys

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI(openapi_url=None)


class Viewers:
    """Who gets what is published."""

    def __init__(self) -> None:
        self.open: list[WebSocket] = []

    async def broadcast(self, message: bytes) -> None:
        failed = []
        for viewer in self.open:
            try:
                await viewer.send_bytes(message)
            except (WebSocketDisconnect, RuntimeError):
                failed.append(viewer)
        for viewer in failed:
            self.remove(viewer)

    def remove(self, viewer: WebSocket) -> None:
        if viewer in self.open:
            self.open.remove(viewer)


viewers = Viewers()


@app.websocket("/sub")
async def subscribe(websocket: WebSocket) -> None:
    await websocket.accept()
    viewers.open.append(websocket)
    try:
        while True:
            await websocket.receive_bytes()
    except WebSocketDisconnect:
        pass
    finally:
        viewers.remove(websocket)


@app.websocket("/pub")
async def publish(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await viewers.broadcast(await websocket.receive_bytes())
    except WebSocketDisconnect:
        pass


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(f"listening ws://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        ws="auto",
        ws_per_message_deflate=False,
        log_level="warning",
        access_log=False,
        lifespan="off",
        backlog=4096,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main())
