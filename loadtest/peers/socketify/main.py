"""uWebSockets' own publish and subscribe, through socketify, measured beside Tidewire.

Its documented use is a publish within the message handler. With --deferred the handler only queues, and what it queued is
published when all sockets have been read: then the library writes up to 32 messages at once, where in the handler it writes
each by itself.

The library's loop is run as it is. socketify's own run() spins between asyncio and it, for handlers that are coroutines;
these are not, and a spinning loop would be charged for CPU that uWebSockets does not need."""

import signal
import sys

from socketify import App, CompressOptions, OpCode

TOPIC = "t"
# A slow subscriber may hold this much before messages to it are dropped: as much as Tidewire's outbox.
BACKPRESSURE_BYTES_MAX = 1 << 20


def main() -> None:
    deferred = "--deferred" in sys.argv[1:]
    app = App(lifespan=False)
    loop = app.loop.uv_loop
    queued: list[bytes] = []

    def on_open(ws) -> None:
        ws.subscribe(TOPIC)

    def publish_now(ws, message, opcode) -> None:
        app.publish(TOPIC, message, OpCode.BINARY)

    def publish_later(ws, message, opcode) -> None:
        queued.append(message)

    def publish_queued(_) -> None:
        for message in queued:
            app.publish(TOPIC, message, OpCode.BINARY)
        queued.clear()

    behavior = {
        "compression": CompressOptions.DISABLED,
        "max_payload_length": 128 << 10,
        "max_backpressure": BACKPRESSURE_BYTES_MAX,
        "close_on_backpressure_limit": False,
        "idle_timeout": 0,
    }
    app.ws("/sub", {**behavior, "open": on_open})
    app.ws("/pub", {**behavior, "message": publish_later if deferred else publish_now})
    app.listen(
        {"port": 0, "host": "127.0.0.1"},
        lambda config: print(f"listening ws://127.0.0.1:{config.port}/", flush=True),
    )
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Kept: the check ends with its object.
    check = loop.create_check(publish_queued, None) if deferred else None
    loop.run()
    del check


if __name__ == "__main__":
    main()
