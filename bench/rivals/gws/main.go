// gws as an echo or broadcast server: rival ADDRESS echo|broadcast.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/lxzan/gws"
)

type echo struct{ gws.BuiltinEventHandler }

func (echo) OnPing(c *gws.Conn, payload []byte) { c.WritePong(payload) }

func (echo) OnMessage(c *gws.Conn, message *gws.Message) {
	defer message.Close()
	c.WriteMessage(message.Opcode, message.Bytes())
}

type broadcast struct {
	gws.BuiltinEventHandler
	peers sync.Map
}

func (b *broadcast) OnOpen(c *gws.Conn)           { b.peers.Store(c, nil) }
func (b *broadcast) OnClose(c *gws.Conn, _ error) { b.peers.Delete(c) }
func (b *broadcast) OnPing(c *gws.Conn, p []byte) { c.WritePong(p) }
func (b *broadcast) OnMessage(c *gws.Conn, message *gws.Message) {
	defer message.Close()
	frame := gws.NewBroadcaster(message.Opcode, append([]byte(nil), message.Bytes()...))
	defer frame.Close()
	b.peers.Range(func(peer, _ any) bool {
		frame.Broadcast(peer.(*gws.Conn))
		return true
	})
}

func main() {
	var handler gws.Event = echo{}
	if len(os.Args) > 2 && os.Args[2] == "broadcast" {
		handler = &broadcast{}
	}
	upgrader := gws.NewUpgrader(handler, &gws.ServerOption{
		Authorize: func(*http.Request, gws.SessionStorage) bool { return true },
	})
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", listener.Addr())
	log.Fatal(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r)
		if err == nil {
			go conn.ReadLoop()
		}
	})))
}
