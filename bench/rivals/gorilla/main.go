// gorilla/websocket as an echo or broadcast server: rival ADDRESS echo|deflate|broadcast.
// It compresses each message by itself, at its default level 1.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/gorilla/websocket"
)

var upgrader = websocket.Upgrader{
	ReadBufferSize:  4096,
	WriteBufferSize: 4096,
	WriteBufferPool: &sync.Pool{},
	CheckOrigin:     func(*http.Request) bool { return true },
}

func echo(w http.ResponseWriter, r *http.Request) {
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	for {
		kind, payload, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if err := conn.WriteMessage(kind, payload); err != nil {
			return
		}
	}
}

var (
	mutex sync.Mutex
	peers = map[*websocket.Conn]bool{}
)

// broadcast writes each message once encoded to every connection, in a loop.
func broadcast(w http.ResponseWriter, r *http.Request) {
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	mutex.Lock()
	peers[conn] = true
	mutex.Unlock()
	defer func() {
		mutex.Lock()
		delete(peers, conn)
		mutex.Unlock()
		conn.Close()
	}()
	for {
		kind, payload, err := conn.ReadMessage()
		if err != nil {
			return
		}
		prepared, err := websocket.NewPreparedMessage(kind, payload)
		if err != nil {
			return
		}
		mutex.Lock()
		for peer := range peers {
			peer.WritePreparedMessage(prepared)
		}
		mutex.Unlock()
	}
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", listener.Addr())
	handler := http.HandlerFunc(echo)
	if len(os.Args) > 2 && os.Args[2] == "broadcast" {
		handler = broadcast
	}
	upgrader.EnableCompression = len(os.Args) > 2 && os.Args[2] == "deflate"
	log.Fatal(http.Serve(listener, handler))
}
