// gobwas/ws as an echo server: rival ADDRESS echo [epoll].
//
// Plain: a goroutine for each connection, as net/http would. With epoll: one loop that waits,
// reads once into a buffer that all connections share, and writes all replies to it at once.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"syscall"

	"github.com/gobwas/ws"
)

func echo(conn net.Conn) {
	defer conn.Close()
	if _, err := ws.Upgrade(conn); err != nil {
		return
	}
	reader := bufio.NewReaderSize(conn, 4096)
	writer := bufio.NewWriterSize(conn, 4096)
	var payload []byte
	for {
		header, err := ws.ReadHeader(reader)
		if err != nil {
			return
		}
		if int64(cap(payload)) < header.Length {
			payload = make([]byte, header.Length)
		}
		payload = payload[:header.Length]
		if _, err := io.ReadFull(reader, payload); err != nil {
			return
		}
		ws.Cipher(payload, header.Mask, 0)
		header.Masked = false
		if header.OpCode == ws.OpPing {
			header.OpCode = ws.OpPong
		}
		if err := ws.WriteHeader(writer, header); err != nil {
			return
		}
		if _, err := writer.Write(payload); err != nil {
			return
		}
		// Replies leave together once nothing more has been read.
		if reader.Buffered() == 0 || header.OpCode == ws.OpClose {
			if writer.Flush() != nil || header.OpCode == ws.OpClose {
				return
			}
		}
	}
}

// A connection of the loop: the part of a frame that came without its end.
type peer struct {
	fd   int
	tail []byte
	open bool
}

// A stream made of what was received, for the handshake.
type exchange struct {
	in  io.Reader
	out []byte
}

func (e *exchange) Read(p []byte) (int, error)  { return e.in.Read(p) }
func (e *exchange) Write(p []byte) (int, error) { e.out = append(e.out, p...); return len(p), nil }

func loop(listener *net.TCPListener) error {
	file, err := listener.File()
	if err != nil {
		return err
	}
	// Kept until the end: collected, it would close the descriptor.
	defer file.Close()
	listening := int(file.Fd())
	if err := syscall.SetNonblock(listening, true); err != nil {
		return err
	}
	epoll, err := syscall.EpollCreate1(0)
	if err != nil {
		return err
	}
	watch := func(fd int) error {
		event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)}
		return syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, fd, &event)
	}
	if err := watch(listening); err != nil {
		return err
	}
	peers := map[int]*peer{}
	buffer := make([]byte, 256*1024)
	var replies []byte
	events := make([]syscall.EpollEvent, 1024)
	for {
		count, err := syscall.EpollWait(epoll, events, -1)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for _, event := range events[:count] {
			fd := int(event.Fd)
			if fd == listening {
				for {
					fd, _, err := syscall.Accept4(listening, syscall.SOCK_NONBLOCK)
					if err != nil {
						break
					}
					syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
					peers[fd] = &peer{fd: fd}
					watch(fd)
				}
				continue
			}
			p := peers[fd]
			received, err := syscall.Read(fd, buffer)
			if err == syscall.EAGAIN {
				continue
			}
			ok := err == nil && received > 0
			if ok {
				replies, ok = p.receive(buffer[:received], replies[:0])
				ok = write(fd, replies) && ok
			}
			if !ok {
				delete(peers, fd)
				syscall.Close(fd)
			}
		}
	}
}

func write(fd int, data []byte) bool {
	for len(data) > 0 {
		sent, err := syscall.Write(fd, data)
		if err != nil && err != syscall.EAGAIN {
			return false
		}
		if sent > 0 {
			data = data[sent:]
		}
	}
	return true
}

// receive appends the replies; false says that the connection is over.
func (p *peer) receive(data, replies []byte) ([]byte, bool) {
	if len(p.tail) > 0 {
		data = append(p.tail, data...)
		p.tail = nil
	}
	if !p.open {
		end := bytes.Index(data, []byte("\r\n\r\n"))
		if end < 0 {
			p.tail = append([]byte(nil), data...)
			return replies, len(data) < 16*1024
		}
		e := &exchange{in: bytes.NewReader(data[:end+4])}
		if _, err := ws.Upgrade(e); err != nil {
			return append(replies, e.out...), false
		}
		p.open = true
		data = data[end+4:]
		replies = append(replies, e.out...)
	}
	for len(data) >= 6 {
		header, used := parse(data)
		if used == 0 || int64(len(data)-used) < header.Length {
			break
		}
		payload := data[used : used+int(header.Length)]
		ws.Cipher(payload, header.Mask, 0)
		data = data[used+int(header.Length):]
		header.Masked = false
		if header.OpCode == ws.OpPing {
			header.OpCode = ws.OpPong
		}
		replies = appendHeader(replies, header)
		replies = append(replies, payload...)
		if header.OpCode == ws.OpClose {
			return replies, false
		}
	}
	if len(data) > 0 {
		p.tail = append([]byte(nil), data...)
	}
	return replies, true
}

// parse reads a header of the library's own type from a slice: its reader would allocate.
func parse(data []byte) (ws.Header, int) {
	header := ws.Header{
		Fin:    data[0]&0x80 != 0,
		Rsv:    data[0] & 0x70 >> 4,
		OpCode: ws.OpCode(data[0] & 0x0f),
		Masked: true,
		Length: int64(data[1] & 0x7f),
	}
	used := 2
	switch header.Length {
	case 126:
		if len(data) < 8 {
			return header, 0
		}
		header.Length = int64(binary.BigEndian.Uint16(data[2:]))
		used = 4
	case 127:
		if len(data) < 14 {
			return header, 0
		}
		header.Length = int64(binary.BigEndian.Uint64(data[2:]))
		used = 10
	}
	copy(header.Mask[:], data[used:used+4])
	return header, used + 4
}

func appendHeader(to []byte, header ws.Header) []byte {
	first := byte(header.OpCode) | header.Rsv<<4
	if header.Fin {
		first |= 0x80
	}
	switch {
	case header.Length < 126:
		return append(to, first, byte(header.Length))
	case header.Length < 65536:
		return binary.BigEndian.AppendUint16(append(to, first, 126), uint16(header.Length))
	default:
		return binary.BigEndian.AppendUint64(append(to, first, 127), uint64(header.Length))
	}
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", listener.Addr())
	if len(os.Args) > 3 && os.Args[3] == "epoll" {
		log.Fatal(loop(listener.(*net.TCPListener)))
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			continue
		}
		go echo(conn)
	}
}
