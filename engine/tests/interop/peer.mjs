// The Node.js package `ws`, as a server and as a client, for `interop.rs`.
//
// peer.mjs server [CHAIN KEY]      echoes; prints "listening PORT"
// peer.mjs client URL [AUTHORITY]  runs the script against a server; exits 0 if all was right
//
// SOCKEYE_DEFLATE, if it is set, asks for permessage-deflate.
import assert from "node:assert";
import { once } from "node:events";
import fs from "node:fs";
import http from "node:http";
import https from "node:https";
import { createRequire } from "node:module";

const require = createRequire(process.env.SOCKEYE_NODE_MODULES + "/");
const { WebSocket, WebSocketServer } = require("ws");

const SIZES = [0, 1, 125, 126, 65_535, 65_536, 1 << 20];
const DEFLATE = Boolean(process.env.SOCKEYE_DEFLATE);
const CODES = [1000, 1001, 1012, 3001, 4999];

function server(chain, key) {
  const files = chain && { cert: fs.readFileSync(chain), key: fs.readFileSync(key) };
  const listener = files ? https.createServer(files) : http.createServer();
  const handleProtocols = (offered) => (offered.has("b") ? "b" : false);
  const wss = new WebSocketServer({ server: listener, handleProtocols, perMessageDeflate: DEFLATE });
  wss.on("connection", (ws) => {
    ws.on("pong", () => ws.send("pong"));
    ws.on("message", (data, binary) => {
      const text = binary ? "" : data.toString();
      if (text === "ping") ws.ping("are you there");
      else if (text === "fragments") {
        ws.send("one ", { fin: false });
        ws.send("two ", { fin: false });
        ws.send("three", { fin: true });
      } else if (text.startsWith("close ")) ws.close(Number(text.slice(6)), "bye");
      else ws.send(data, { binary });
    });
  });
  listener.listen(0, "127.0.0.1", () => console.log("listening", listener.address().port));
}

async function client(url, authority) {
  const options = { perMessageDeflate: DEFLATE };
  if (authority) options.ca = fs.readFileSync(authority);
  const open = async () => {
    const ws = new WebSocket(url, ["a", "b"], options);
    await once(ws, "open");
    return ws;
  };
  const ws = await open();
  assert.strictEqual(ws.protocol, "b");
  for (const size of SIZES) {
    for (const binary of [false, true]) {
      const payload = Buffer.alloc(size, "x");
      ws.send(payload, { binary });
      const [data, isBinary] = await once(ws, "message");
      assert(payload.equals(data) && binary === isBinary, `${size}`);
    }
  }
  assert.strictEqual(ws.extensions.includes("permessage-deflate"), DEFLATE);
  for (let number = 0; number < 20; number++) {
    const ids = Array.from({ length: 100 }, (_, i) => number * 100 + i);
    const message = JSON.stringify(ids.map((id) => ({ id, name: `user ${id % 7}` })));
    ws.send(message);
    assert.strictEqual((await once(ws, "message"))[0].toString(), message);
  }
  ws.ping("hello");
  assert.strictEqual((await once(ws, "pong"))[0].toString(), "hello");
  ws.send("frag", { fin: false });
  ws.send("", { fin: false });
  ws.send("mented é", { fin: true });
  assert.strictEqual((await once(ws, "message"))[0].toString(), "fragmented é");
  ws.send("ping");
  assert.strictEqual((await once(ws, "message"))[0].toString(), "pong");
  ws.close();
  for (const code of CODES) {
    const closing = await open();
    closing.close(code, "bye");
    assert.strictEqual((await once(closing, "close"))[0], code);
    const closed = await open();
    closed.send(`close ${code}`);
    const [got, reason] = await once(closed, "close");
    assert.deepStrictEqual([got, reason.toString()], [code, "bye"]);
  }
}

const [role, ...rest] = process.argv.slice(2);
await { server, client }[role](...rest);
