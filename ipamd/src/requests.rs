//! The owner's other end: what asks it within this process (the socket, HTTP, tests).

use tokio::sync::{mpsc, oneshot};
use veni_core::wire::{
    AddRequest, Attachment, DelReason, ReplyBody,
    inspect::{Query, View},
};

use crate::owner::{Command, ConnectionId};

/// Asks the owner. Every answer is `None` when the owner ends before it answers.
#[derive(Debug, Clone)]
pub struct Requests {
    commands: mpsc::Sender<Command>,
}

impl Requests {
    /// Over the owner's channel.
    #[must_use]
    pub fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands }
    }

    /// ADD as a plugin asks for it: `wire` runs between the answer and the connection's end.
    pub async fn add(
        &self,
        request: AddRequest,
        wire: impl FnOnce(&ReplyBody),
    ) -> Option<ReplyBody> {
        let (connection, attachment) = (ConnectionId::next(), request.attachment.clone());
        let body = self.ask(|reply| Command::Add(connection, request, reply)).await?;
        wire(&body);
        self.commands.send(Command::AddClosed(connection, attachment)).await.ok()?;
        Some(body)
    }

    /// DEL.
    pub async fn del(&self, attachment: Attachment, reason: DelReason) -> Option<ReplyBody> {
        self.ask(|reply| Command::Del(attachment, reason, reply)).await
    }

    /// The view, with each address or without.
    pub async fn view(&self, addresses: bool) -> Option<View> {
        match self.ask(|reply| Command::Inspect(Query { addresses }, reply)).await? {
            ReplyBody::Inspect(view) => Some(*view),
            _ => None,
        }
    }

    /// Any command that is answered.
    pub async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<ReplyBody>) -> Command,
    ) -> Option<ReplyBody> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Sends a command that is not answered.
    pub async fn tell(&self, command: Command) {
        // At shutdown there is nobody to tell.
        drop(self.commands.send(command).await);
    }

    /// Returns when the owner has gone.
    pub async fn closed(&self) {
        self.commands.closed().await;
    }
}
