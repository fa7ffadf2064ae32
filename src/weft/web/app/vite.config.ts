import { defineConfig, type ProxyOptions } from "vite";

// where `weft live` listens while the page is worked on with `npm run dev`
const proxied: ProxyOptions = {
  target: process.env["WEFT_SERVER"] ?? "http://127.0.0.1:8765",
  changeOrigin: true,
  headers: { Authorization: `Bearer ${process.env["WEFT_TOKEN"] ?? ""}` },
  // the server takes changes from its own page only, which this stands for
  configure: (proxy) => proxy.on("proxyReq", (request) => request.removeHeader("origin")),
};

export default defineConfig({
  base: "./",
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../static",
    emptyOutDir: true,
    target: "es2022",
    // a data: address would not pass the Content-Security-Policy
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { "/api": proxied } },
});
