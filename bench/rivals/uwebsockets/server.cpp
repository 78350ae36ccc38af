// uWebSockets as an echo or broadcast server: rival HOST:PORT echo|deflate|broadcast, or
// rival HOST:PORT tls CHAIN KEY.
#include "App.h"

#include <cstring>
#include <iostream>
#include <string>

struct Data {};

template <class App>
void serve(App app, int argc, char **argv) {
    std::string address = argv[1];
    bool broadcast = argc > 2 && !strcmp(argv[2], "broadcast");
    bool deflate = argc > 2 && !strcmp(argv[2], "deflate");
    auto colon = address.rfind(':');
    std::string host = address.substr(0, colon);
    int port = std::stoi(address.substr(colon + 1));

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
    }).listen(host, port, [host](auto *listening) {
        if (!listening) {
            std::cerr << "cannot listen" << std::endl;
            exit(1);
        }
        int port = us_socket_local_port(0, (struct us_socket_t *) listening);
        std::cout << "listening on " << host << ":" << port << std::endl;
    }).run();
}

int main(int argc, char **argv) {
    if (argc > 4 && !strcmp(argv[2], "tls")) {
#ifdef LIBUS_USE_OPENSSL
        serve(uWS::SSLApp({.key_file_name = argv[4], .cert_file_name = argv[3]}), argc, argv);
        return 0;
#else
        std::cerr << "built without TLS" << std::endl;
        return 1;
#endif
    }
    serve(uWS::App(), argc, argv);
}
