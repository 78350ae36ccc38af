package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

func compression() websocket.CompressionMode {
	switch deflate {
	case "apart":
		return websocket.CompressionNoContextTakeover
	case "takeover":
		return websocket.CompressionContextTakeover
	}
	return websocket.CompressionDisabled
}

func coderEcho(w http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"b"}, CompressionMode: compression()})
	if err != nil {
		return
	}
	defer ws.CloseNow()
	ws.SetReadLimit(1 << 21)
	ctx := context.Background()
	for {
		kind, payload, err := ws.Read(ctx)
		if err != nil {
			return
		}
		text := string(payload)
		if code, found := closeCode(text); found && kind == websocket.MessageText {
			ws.Close(websocket.StatusCode(code), "bye")
			return
		}
		switch {
		case text == "ping" && kind == websocket.MessageText:
			// A ping waits for its pong, which somebody has to read.
			go func() {
				check(ws.Ping(ctx))
				check(ws.Write(ctx, websocket.MessageText, []byte("pong")))
			}()
		case text == "fragments":
			writer, err := ws.Writer(ctx, kind)
			check(err)
			for _, part := range []string{"one ", "two ", "three"} {
				_, err = writer.Write([]byte(part))
				check(err)
			}
			check(writer.Close())
		default:
			check(ws.Write(ctx, kind, payload))
		}
	}
}

func coderClient(url string, trusted *tls.Config) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trusted}}
	open := func() *websocket.Conn {
		options := &websocket.DialOptions{HTTPClient: client, Subprotocols: []string{"a", "b"}, CompressionMode: compression()}
		ws, response, err := websocket.Dial(ctx, url, options)
		check(err)
		agreed(response)
		ws.SetReadLimit(1 << 21)
		return ws
	}
	ws := open()
	expect(ws.Subprotocol() == "b", "subprotocol")
	read := func(want []byte) {
		_, got, err := ws.Read(ctx)
		check(err)
		expect(bytes.Equal(got, want), "echo of ", len(want))
	}
	for _, size := range sizes {
		for _, kind := range []websocket.MessageType{websocket.MessageText, websocket.MessageBinary} {
			payload := bytes.Repeat([]byte("x"), size)
			check(ws.Write(ctx, kind, payload))
			read(payload)
		}
	}
	for number := range 20 {
		check(ws.Write(ctx, websocket.MessageText, records(number)))
		read(records(number))
	}
	writer, err := ws.Writer(ctx, websocket.MessageText)
	check(err)
	for _, part := range []string{"frag", "", "mented é"} {
		_, err = writer.Write([]byte(part))
		check(err)
	}
	check(writer.Close())
	read([]byte("fragmented é"))
	check(ws.Write(ctx, websocket.MessageText, []byte("ping")))
	read([]byte("pong"))
	// A ping of ours: its pong is read by another reader.
	pinged := open()
	pinged.CloseRead(ctx)
	check(pinged.Ping(ctx))
	for _, code := range codes {
		closing := open()
		check(closing.Close(websocket.StatusCode(code), "bye"))
		closed := open()
		check(closed.Write(ctx, websocket.MessageText, []byte(fmt.Sprint("close ", code))))
		_, _, err := closed.Read(ctx)
		var got websocket.CloseError
		expect(errors.As(err, &got), code, err)
		expect(int(got.Code) == code && got.Reason == "bye", code, err)
	}
}
