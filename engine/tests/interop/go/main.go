// gorilla/websocket and coder/websocket, as servers and as clients, for `interop.rs`.
//
//	interop gorilla|coder server [CHAIN KEY]     echoes; prints "listening PORT"
//	interop gorilla|coder client URL [AUTHORITY] runs the script; exits 0 if all was right
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
)

var sizes = []int{0, 1, 125, 126, 65535, 65536, 1 << 20}

// SOCKEYE_DEFLATE asks for permessage-deflate: "apart", or with context "takeover".
var deflate = os.Getenv("SOCKEYE_DEFLATE")
var codes = []int{1000, 1001, 1012, 3001, 4999}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func expect(holds bool, what ...any) {
	if !holds {
		panic(fmt.Sprint(what...))
	}
}

// agreed checks what has become of the offer.
func agreed(response *http.Response) {
	header := response.Header.Get("Sec-WebSocket-Extensions")
	expect(strings.Contains(header, "permessage-deflate") == (deflate != ""), header)
}

// records is text of some records, which are much like those of other numbers.
func records(number int) []byte {
	var text strings.Builder
	for i := range 100 {
		fmt.Fprintf(&text, `{"id":%d,"name":"user %d"},`, number*100+i, i%7)
	}
	return []byte(text.String())
}

// closeCode is the number of a "close N" message.
func closeCode(text string) (int, bool) {
	number, found := strings.CutPrefix(text, "close ")
	code, err := strconv.Atoi(number)
	return code, found && err == nil
}

func serve(handler http.HandlerFunc, files []string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println("listening", listener.Addr().(*net.TCPAddr).Port)
	server := &http.Server{Handler: handler}
	if len(files) == 2 {
		check(server.ServeTLS(listener, files[0], files[1]))
	}
	check(server.Serve(listener))
}

func trust(authority []string) *tls.Config {
	if len(authority) == 0 {
		return nil
	}
	pem, err := os.ReadFile(authority[0])
	check(err)
	pool := x509.NewCertPool()
	expect(pool.AppendCertsFromPEM(pem), "no authority")
	return &tls.Config{RootCAs: pool}
}

func main() {
	library, role, rest := os.Args[1], os.Args[2], os.Args[3:]
	switch library + " " + role {
	case "gorilla server":
		serve(gorillaEcho, rest)
	case "gorilla client":
		gorillaClient(rest[0], trust(rest[1:]))
	case "coder server":
		serve(coderEcho, rest)
	case "coder client":
		coderClient(rest[0], trust(rest[1:]))
	default:
		panic("unknown role")
	}
}
