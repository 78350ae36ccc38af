package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

func gorillaEcho(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{Subprotocols: []string{"b"}, EnableCompression: deflate != ""}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer ws.Close()
	ws.SetPongHandler(func(string) error {
		return ws.WriteMessage(websocket.TextMessage, []byte("pong"))
	})
	deadline := func() time.Time { return time.Now().Add(10 * time.Second) }
	for {
		kind, payload, err := ws.ReadMessage()
		if err != nil {
			return
		}
		text := string(payload)
		if code, found := closeCode(text); found && kind == websocket.TextMessage {
			message := websocket.FormatCloseMessage(code, "bye")
			check(ws.WriteControl(websocket.CloseMessage, message, deadline()))
		} else if text == "ping" {
			check(ws.WriteControl(websocket.PingMessage, []byte("are you there"), deadline()))
		} else {
			if text == "fragments" {
				// Longer than its buffer: it leaves in fragments.
				payload = bytes.Repeat([]byte("fragment "), 2000)
			}
			writer, err := ws.NextWriter(kind)
			check(err)
			_, err = writer.Write(payload)
			check(err)
			check(writer.Close())
		}
	}
}

func gorillaClient(url string, trusted *tls.Config) {
	dialer := websocket.Dialer{TLSClientConfig: trusted, Subprotocols: []string{"a", "b"}}
	dialer.EnableCompression = deflate != ""
	open := func() *websocket.Conn {
		ws, response, err := dialer.Dial(url, nil)
		check(err)
		agreed(response)
		return ws
	}
	ws := open()
	expect(ws.Subprotocol() == "b", "subprotocol")
	echo := func(kind int, payload []byte) {
		check(ws.WriteMessage(kind, payload))
		gotKind, got, err := ws.ReadMessage()
		check(err)
		expect(gotKind == kind && bytes.Equal(got, payload), "echo of ", len(payload))
	}
	for _, size := range sizes {
		echo(websocket.TextMessage, bytes.Repeat([]byte("x"), size))
		echo(websocket.BinaryMessage, make([]byte, size))
	}
	for number := range 20 {
		echo(websocket.TextMessage, records(number))
	}
	ponged := ""
	ws.SetPongHandler(func(payload string) error { ponged = payload; return nil })
	check(ws.WriteControl(websocket.PingMessage, []byte("hello"), time.Now().Add(10*time.Second)))
	// Fragments: the writer has a buffer of 4 KiB.
	writer, err := ws.NextWriter(websocket.TextMessage)
	check(err)
	_, err = io.WriteString(writer, string(bytes.Repeat([]byte("é"), 3000)))
	check(err)
	check(writer.Close())
	_, got, err := ws.ReadMessage()
	check(err)
	expect(bytes.Equal(got, bytes.Repeat([]byte("é"), 3000)), "fragments")
	expect(ponged == "hello", "pong")
	check(ws.WriteMessage(websocket.TextMessage, []byte("ping")))
	_, got, err = ws.ReadMessage()
	check(err)
	expect(string(got) == "pong", "ping")
	for _, code := range codes {
		closing := open()
		message := websocket.FormatCloseMessage(code, "bye")
		check(closing.WriteControl(websocket.CloseMessage, message, time.Now().Add(10*time.Second)))
		_, _, err := closing.ReadMessage()
		expect(websocket.IsCloseError(err, code), code, err)
		closed := open()
		check(closed.WriteMessage(websocket.TextMessage, []byte(fmt.Sprint("close ", code))))
		_, _, err = closed.ReadMessage()
		expect(websocket.IsCloseError(err, code), code, err)
		expect(err.(*websocket.CloseError).Text == "bye", err)
	}
}
