// The official TypeScript client over WebSocket: it refuses a handshake without the subprotocol and drops binary frames.
import assert from "node:assert/strict";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { WebSocketClientTransport } from "@modelcontextprotocol/sdk/client/websocket.js";

const client = new Client({ name: "typescript", version: "0" });
await client.connect(new WebSocketClientTransport(new URL(process.argv[2])));
assert.equal(client.getServerVersion().name, "exai-conformance");

const { tools } = await client.listTools();
assert.ok(tools.some((tool) => tool.name === "test_simple_text"));

const reports = [];
const result = await client.callTool({ name: "test_tool_with_progress", arguments: {} }, undefined, {
  onprogress: (report) => reports.push(report.progress),
});
assert.equal(result.content[0].text, "done");
assert.deepEqual(reports, [1, 2, 3]);

assert.equal((await client.callTool({ name: "test_error_handling", arguments: {} })).isError, true);
await assert.rejects(client.callTool({ name: "no_such_tool", arguments: {} }), /Unknown tool/);
const { contents } = await client.readResource({ uri: "test://static-text" });
assert.match(contents[0].text, /static text/);
await client.close();
