// The broadcast of ws's documentation, measured beside Tidewire: each message goes to each open client of the other path.
// Compression is off, as is its default, and bufferutil is used where it could be built.
'use strict';

const { WebSocketServer, WebSocket } = require('ws');

const viewers = new Set();
const server = new WebSocketServer({
  host: '127.0.0.1',
  port: 0,
  backlog: 4096,
  perMessageDeflate: false,
  clientTracking: false,
});

server.on('listening', () => {
  console.log(`listening ws://127.0.0.1:${server.address().port}/`);
});

server.on('connection', (socket, request) => {
  socket.on('error', () => socket.terminate());
  if (request.url === '/sub') {
    viewers.add(socket);
    socket.on('close', () => viewers.delete(socket));
    return;
  }
  socket.on('message', (data, isBinary) => {
    for (const viewer of viewers) {
      if (viewer.readyState === WebSocket.OPEN) viewer.send(data, { binary: isBinary });
    }
  });
});
