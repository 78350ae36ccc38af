use crate::protocol::CloseCode;

use super::Env;
use super::State;

/// What few connections have, in a box of its own: an idle connection that has none of it pays
/// for a pointer.
#[derive(Debug, Default)]
pub(super) struct Extra {
    /// The agreed subprotocol, if it is none of the route's list.
    subprotocol: Option<Box<str>>,
    /// The Close frame that the handler asked for.
    pub(super) close: Option<LocalClose>,
}

/// A Close frame that was sent.
#[derive(Debug)]
pub(super) struct LocalClose {
    pub(super) code: Option<CloseCode>,
    pub(super) reason: Box<str>,
}

/// Which subprotocol was agreed: one of the route's list costs no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subprotocol(u8);

impl Subprotocol {
    /// None.
    pub(super) const NONE: Self = Self(u8::MAX);
    /// The one in [`Extra`].
    const OWN: Self = Self(u8::MAX - 1);
}

impl State {
    pub(super) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    pub(super) fn set_subprotocol(&mut self, name: Option<&str>, env: &Env) {
        let listed = &env.route(self.route).route.subprotocols;
        let Some(name) = name else {
            self.subprotocol = Subprotocol::NONE;
            return;
        };
        let index = listed.iter().position(|listed| listed == name);
        match index.and_then(|index| u8::try_from(index).ok()) {
            Some(index) if index < Subprotocol::OWN.0 => self.subprotocol = Subprotocol(index),
            _ => {
                self.subprotocol = Subprotocol::OWN;
                self.extra_mut().subprotocol = Some(name.into());
            }
        }
    }

    pub(super) fn subprotocol<'s>(&'s self, env: &'s Env) -> Option<&'s str> {
        match self.subprotocol {
            Subprotocol::NONE => None,
            Subprotocol::OWN => self.extra.as_ref()?.subprotocol.as_deref(),
            Subprotocol(index) => {
                let listed = &env.route(self.route).route.subprotocols;
                listed.get(usize::from(index)).map(String::as_str)
            }
        }
    }
}
