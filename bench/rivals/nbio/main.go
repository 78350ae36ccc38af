// nbio as an echo server: rival ADDRESS echo.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/lesismal/nbio/logging"
	"github.com/lesismal/nbio/nbhttp"
	"github.com/lesismal/nbio/nbhttp/websocket"
)

func main() {
	logging.SetLevel(logging.LevelNone)
	upgrader := websocket.NewUpgrader()
	upgrader.CheckOrigin = func(*http.Request) bool { return true }
	upgrader.KeepaliveTime = 0
	upgrader.BlockingModAsyncWrite = false
	upgrader.OnMessage(func(c *websocket.Conn, kind websocket.MessageType, payload []byte) {
		c.WriteMessage(kind, payload)
	})
	mux := &http.ServeMux{}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		upgrader.Upgrade(w, r, nil)
	})
	engine := nbhttp.NewEngine(nbhttp.Config{
		Network:                 "tcp",
		Addrs:                   []string{os.Args[1]},
		NPoller:                 1,
		MaxLoad:                 1000000,
		ReleaseWebsocketPayload: true,
		ReadBufferSize:          64 * 1024,
		IOMod:                   nbhttp.IOModNonBlocking,
		ServerExecutor:          func(f func()) { f() },
		Handler:                 mux,
	})
	if err := engine.Start(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", engine.Addrs[0])
	select {}
}
