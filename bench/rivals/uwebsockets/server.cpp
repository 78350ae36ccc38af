// uWebSockets as an echo or broadcast server: rival HOST:PORT echo|deflate [THREADS], rival HOST:PORT
// broadcast, or rival HOST:PORT tls CHAIN KEY. Each thread has an app of its own on the same port; what
// one publishes does not reach the others.
#include "App.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <iostream>
#include <string>
#include <thread>

struct Data {};

template <class App>
void serve(App app, std::string host, int port, std::string mode, int threads, bool announce = true) {
    bool broadcast = mode == "broadcast";
    bool deflate = mode == "deflate";

    app.template ws<Data>("/*", {
        .compression = deflate ? uWS::SHARED_COMPRESSOR : uWS::DISABLED,
        .maxPayloadLength = 16 * 1024 * 1024,
        .idleTimeout = 120,
        .maxBackpressure = 64 * 1024 * 1024,
        .closeOnBackpressureLimit = false,
        .resetIdleTimeoutOnSend = false,
        .sendPingsAutomatically = true,
        .upgrade = nullptr,
        .open = [broadcast](auto *ws) {
            if (broadcast) {
                ws->subscribe("all");
            }
        },
        .message = [broadcast, deflate, &app](auto *ws, std::string_view message, uWS::OpCode opCode) {
            if (broadcast) {
                app.publish("all", message, opCode);
            } else {
                ws->send(message, opCode, deflate);
            }
        },
    }).listen(host, port, [=](auto *listening) {
        if (!listening) {
            std::cerr << "cannot listen" << std::endl;
            exit(1);
        }
        int port = us_socket_local_port(0, (struct us_socket_t *) listening);
        if (announce) {
            std::cout << "listening on " << host << ":" << port << std::endl;
        }
        if (threads > 1) {
            std::thread([=] { serve(uWS::App(), host, port, mode, threads - 1, false); }).detach();
        }
    }).run();
}

// A free port on which several sockets can listen: it stays bound for as long as this process runs.
int shared_port(const std::string &host) {
    int socket = ::socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    sockaddr_in address = {};
    socklen_t length = sizeof(address);
    address.sin_family = AF_INET;
    inet_pton(AF_INET, host.c_str(), &address.sin_addr);
    if (bind(socket, (sockaddr *) &address, length) || getsockname(socket, (sockaddr *) &address, &length)) {
        std::cerr << "cannot bind" << std::endl;
        exit(1);
    }
    return ntohs(address.sin_port);
}

int main(int argc, char **argv) {
    std::string address = argv[1];
    std::string mode = argc > 2 ? argv[2] : "echo";
    auto colon = address.rfind(':');
    std::string host = address.substr(0, colon);
    int port = std::stoi(address.substr(colon + 1));
    if (argc > 4 && mode == "tls") {
#ifdef LIBUS_USE_OPENSSL
        serve(uWS::SSLApp({.key_file_name = argv[4], .cert_file_name = argv[3]}), host, port, mode, 1);
        return 0;
#else
        std::cerr << "built without TLS" << std::endl;
        return 1;
#endif
    }
    int threads = argc > 3 ? std::stoi(argv[3]) : 1;
    if (threads > 1 && port == 0) {
        port = shared_port(host);
    }
    serve(uWS::App(), host, port, mode, threads);
}
