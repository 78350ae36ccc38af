use crate::http1::InvalidHeader;
use crate::http1::Response;
use crate::http1::push_header;

/// The answer to a request for a WebSocket.
#[derive(Debug)]
pub struct Upgrade<D> {
    pub(super) answer: Answer<D>,
}

#[derive(Debug)]
pub(super) enum Answer<D> {
    Accept {
        data: D,
        subprotocol: Option<Box<str>>,
        headers: String,
    },
    Reject(Response),
}

impl<D> Upgrade<D> {
    /// Accepts; `data` is the connection's until the end of `on_close`. The subprotocol is the
    /// first of the server's that the client offers.
    pub fn accept(data: D) -> Self {
        Self {
            answer: Answer::Accept {
                data,
                subprotocol: None,
                headers: String::new(),
            },
        }
    }

    /// Rejects; the connection closes behind the answer.
    pub fn reject(response: Response) -> Self {
        Self {
            answer: Answer::Reject(response),
        }
    }

    /// Chooses a subprotocol. It is used only if the client has offered it (RFC 6455 §4.2.2).
    #[must_use]
    pub fn subprotocol(mut self, name: &str) -> Self {
        if let Answer::Accept { subprotocol, .. } = &mut self.answer {
            *subprotocol = Some(name.into());
        }
        self
    }

    /// Adds a header to the answer that accepts.
    ///
    /// # Errors
    /// [`InvalidHeader`], so that no value can add a line of its own.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, InvalidHeader> {
        if let Answer::Accept { headers, .. } = &mut self.answer {
            push_header(headers, name, value)?;
        }
        Ok(self)
    }
}
