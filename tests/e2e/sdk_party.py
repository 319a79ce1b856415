"""A party of the market that shares nothing with ours: nostr-sdk signs, seals and speaks to the relay, as a process.

``python sdk_party.py customer|provider|bidder RELAY``; a bidder is a provider that looks at requests to everybody. It
prints its key, and from then on a line of JSON for all that it hears; each line of stdin is something to do. What
costs money, paying and asking for it, is for who started it.

Customer: ``{"ask": PROMPT, "provider": HEX, "sealed": "nip44" | "nip04" | null, "params": {...}}``, or a request as it
is: ``{"tags": [...], "content": ...}``.
Provider: ``{"announce": MSATS}``, ``{"quote": REQUEST, "msats": TEXT, "bolt11": ...}``,
``{"answer": REQUEST, "text": ...}``.
"""

import asyncio
import json
import sys

import nostr_sdk as sdk

JOB, RESULT, FEEDBACK, HANDLER = 5050, 6050, 7000, 31990


def seal(keys, other, text, scheme):
    return keys.nip04_encrypt(other, text) if scheme == "nip04" else keys.nip44_encrypt(other, text)


def unseal(keys, other, text):
    return keys.nip04_decrypt(other, text) if "?iv=" in text else keys.nip44_decrypt(other, text)


def tags_of(event, name):
    return [tag.to_vec() for tag in event.tags() if tag.to_vec()[0] == name]


def is_sealed(event):
    return bool(tags_of(event, "encrypted"))


class Party:
    def __init__(self, relay):
        self.keys = sdk.Keys.generate()
        self.client = sdk.ClientBuilder().build()
        self.relay = sdk.RelayUrl.parse(relay)
        self.sealed = {}

    def wanted(self):
        return sdk.Filter().kinds([sdk.Kind(kind) for kind in self.kinds]).pubkey(self.keys.public_key())

    async def open(self):
        await self.client.add_relay(self.relay)
        await self.client.connect()
        stream = self.client.notifications()
        await self.client.subscribe(sdk.ReqTarget.auto([self.wanted()]))
        print(json.dumps({"key": self.keys.public_key().to_hex()}), flush=True)
        return stream

    async def publish(self, kind, content, *tags):
        builder = sdk.EventBuilder(sdk.Kind(kind), content).tags([sdk.Tag.parse(list(tag)) for tag in tags])
        event = builder.finalize(self.keys)
        await self.client.send_event(event)
        return event.id().to_hex()

    async def listen(self, stream):
        seen = set()
        while (notice := await stream.next()) is not None:
            if notice.is_new_event() and notice.event.id().to_hex() not in seen:
                seen.add(notice.event.id().to_hex())
                print(json.dumps(self.tell(notice.event)), flush=True)

    async def obey(self):
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps({"did": await self.do(json.loads(line))}), flush=True)


class Customer(Party):
    kinds = (FEEDBACK, RESULT)

    async def do(self, wish):
        if "tags" in wish:
            return await self.publish(JOB, wish["content"], *wish["tags"])
        other, scheme = sdk.PublicKey.parse(wish["provider"]), wish["sealed"]
        private = [["i", wish["ask"], "text"], *(["param", name, value] for name, value in wish["params"].items())]
        if scheme is None:
            return await self.publish(JOB, "", *private, ["p", wish["provider"]])
        sealed = seal(self.keys, other, json.dumps(private), scheme)
        # Clients from before NIP-44 name no scheme.
        named = ["encrypted"] if scheme == "nip04" else ["encrypted", scheme]
        return await self.publish(JOB, sealed, ["p", wish["provider"]], named)

    def tell(self, event):
        said = {"request": tags_of(event, "e")[0][1], "by": event.author().to_hex(), "sealed": is_sealed(event)}
        content = event.content()
        if is_sealed(event):
            said["scheme"] = "nip04" if "?iv=" in content else "nip44"
            content = unseal(self.keys, event.author(), content)
        if event.kind().as_u16() == RESULT:
            return {**said, "text": content}
        amount = (tags_of(event, "amount") or [["amount", "0"]])[0]
        return {**said, "status": tags_of(event, "status")[0][1], "msats": int(amount[1]), "bolt11": (*amount, "")[2]}


class Provider(Party):
    kinds = (JOB,)

    def __init__(self, relay):
        super().__init__(relay)
        self.asked = {}

    async def do(self, wish):
        if "announce" in wish:
            tags = [["d", "sdk"], ["k", str(JOB)], ["model", "sdk-1"], ["network", "simnet"]]
            return await self.publish(HANDLER, "{}", *tags, ["price", str(wish["announce"]), "msats"])
        event = self.asked[wish.get("quote") or wish["answer"]]
        public = [["e", event.id().to_hex()], ["p", event.author().to_hex()]]
        if "quote" in wish:
            amount = ["amount", wish["msats"], wish["bolt11"]]
            return await self.publish(FEEDBACK, "", ["status", "payment-required"], *public, amount)
        if not is_sealed(event):
            return await self.publish(RESULT, wish["text"], *public, ["request", event.as_json()])
        scheme = tags_of(event, "encrypted")[0][1:] or ["nip04"]
        sealed = seal(self.keys, event.author(), wish["text"], scheme[0])
        return await self.publish(RESULT, sealed, *public, ["encrypted", *scheme])

    def tell(self, event):
        self.asked[event.id().to_hex()] = event
        tags = [tag.to_vec() for tag in event.tags()]
        if is_sealed(event):
            tags += json.loads(unseal(self.keys, event.author(), event.content()))
        prompt = "\n".join(tag[1] for tag in tags if tag[0] == "i")
        return {"job": event.id().to_hex(), "by": event.author().to_hex(), "prompt": prompt, "sealed": is_sealed(event)}


class Bidder(Provider):
    def wanted(self):
        return sdk.Filter().kinds([sdk.Kind(kind) for kind in self.kinds]).since(sdk.Timestamp.now())


PARTIES = {"customer": Customer, "provider": Provider, "bidder": Bidder}


async def main():
    sdk.uniffi_set_event_loop(asyncio.get_running_loop())
    party = PARTIES[sys.argv[1]](sys.argv[2])
    stream = await party.open()
    listening = asyncio.create_task(party.listen(stream))
    await party.obey()
    listening.cancel()
    await party.client.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
