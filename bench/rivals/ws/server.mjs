// The Node.js package ws as an echo server: server.mjs ADDRESS echo|deflate.
// It compresses each message by itself, at zlib's level 1.
import { WebSocketServer } from "ws";

const [address, mode] = process.argv.slice(2);
const [host, port] = address.split(":");
const apart = { serverNoContextTakeover: true, clientNoContextTakeover: true };
const perMessageDeflate =
  mode === "deflate" && { ...apart, threshold: 512, zlibDeflateOptions: { level: 1 } };
const server = new WebSocketServer({ host, port: Number(port), perMessageDeflate });
server.on("connection", (ws) => {
  ws.on("message", (data, binary) => ws.send(data, { binary }));
});
server.on("listening", () => console.log(`listening on ${host}:${server.address().port}`));
