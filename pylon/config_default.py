"""The ``config.toml`` of a new home: every key with its default, commented out."""

from __future__ import annotations

from pylon.config import DEFAULT_NETWORK

_HEAD = """\
# Pylon's configuration. Every key is optional; what is commented out shows the default.
# Order: defaults < this file < PYLON_* environment (PYLON_NETWORK, PYLON_RELAY_BIND, ...) < flags.

# Where Lightning payments happen: "mainnet", "testnet", "signet", "regtest", "simnet".
network = "{network}"{remark}

{relays}

# Payments (provider mode). An amount in msats is a thousandth of a sat.
# enable_payments = true
# require_payment = true
# min_price_msats = 1000  # 1 sat at least per job

# The model that answers where a job names none, and the backends in the order of preference.
# default_model = "llama3.2"
# backend_preference = ["ollama", "llamacpp", "apple_fm"]
# Backends elsewhere, or several of a kind, are [[backends]] tables at the end of this file.

# Where everything but this file is kept.
# data_dir = "/custom/path"

[relay]
# The embedded relay, for the agents, the provider and the neighbours of this machine.
# enabled = true
# bind = "127.0.0.1:7777"

[simnet]
# A ledger that several homes on this machine share; the default is simnet.db of this home.
# ledger = "/custom/simnet.db"

[spark]
# The wallets of every network but simnet. Mainnet wants an API key of Breez', free of charge:
# https://breez.technology/request-api-key/#contact-us-form-sdk; PYLON_SPARK_API_KEY is the place that no backup copies.
# api_key = ""
# client_wallets = 20  # hear of payments at once; the others are asked in turn
# sweeps_per_second = 2

[provider]
# name = "Pylon Provider"
# description = ""
# model_file = "/models/model.gguf"  # for the embedded llama.cpp server
# max_tokens = 512
# pay_on_delivery = true  # hold a payment until the job is done, where customer and wallet can
# What a job costs by its tokens, if that is more than min_price_msats (docs/PROVIDER_MODE.md).
# price_in_msats = 0  # 1,000 tokens of the prompt
# price_out_msats = 0  # 1,000 tokens of the longest answer that the customer allows
# free_per_day = 0  # jobs a day that each key has free
# trusted = []  # customers (npub1...) that no cap holds back
# trusted_free = false  # true: and that pay nothing
# blocked = []  # customers that are not heard
# fetch_urls = false  # true: fetch inputs of type url
# multipliers = {{}}  # {{ "llama3.2" = 1.5 }} costs half as much again as the others

[provider.deadlines]
# Seconds.
# connect = 5
# first_token = 60
# between_tokens = 30
# total = 300
# payment = 600  # from the quote to the payment

[api]
# enabled = true
# bind = "127.0.0.1:9899"
# public_name = ""  # "agents.example.com": the world zaps your agents as NAME@agents.example.com
# zap_max_sats = 1000000
# concurrency = 16
# market = false  # true: /v1 buys its answers from the market
# budget_day_msats = 1000000  # for what it buys in any 24 hours, fees included; 0 means nothing
# budget_each_msats = 100000  # for one answer

[wallet]
# The home's own wallet; "nwc" is one that you have already, by the connection string that it gives you
# (Nostr Wallet Connect), in keys/wallet.nwc (0600) or in PYLON_NWC_URI.
# kind = "network"
# uri_file = "/custom/wallet.nwc"
# What programs may spend of this home's sats; no key, no bound but the wallet. 0 means nothing.
# budget_day_sats = 1000  # in any 24 hours, fees included
# budget_each_sats = 100
# payee_day_sats = 500
# max_fee_sats = 5
# reserve_sats = 0
# approve_above_sats = 100  # more than this waits for: pylon wallet approve

[log]
# level = "info"  # debug, info, warning, error

[retention]
# What has no money in it is forgotten after so many days; payments are kept for ever.
# events_days = 7  # events that every relay has answered
# requests_days = 30  # requests that came to nothing
# unpaid_requests = 5000  # at most so many of those, in each of their states
# quiet_days = 14  # ticks in which an agent thought nothing
# thoughts_days = 365  # what agents have thought and done
# relay_jobs_days = 90  # jobs on the embedded relay

[claude]
# enabled = true
# model = "claude-sonnet-4-20250514"
# autonomy = "supervised"  # full | supervised | restricted | read_only
# approval_required_tools = ["Write", "Edit", "Bash"]

# [[backends]]
# kind = "openai"  # or "ollama", "llamacpp", "apple_fm"; any server that speaks OpenAI's API is "openai"
# url = "https://api.openai.com/v1"
# key_env = "OPENAI_API_KEY"  # the variable that holds the key
# models = ["gpt-5-mini"]  # what is sold of it
"""

_PUBLIC_RELAYS = """\
# Nostr relays, ws:// or wss://, beside the embedded one.
relays = [
    "wss://relay.damus.io",
    "wss://nos.lol",
    "wss://relay.nostr.band",
]"""

_NO_RELAYS = """\
# Nostr relays, ws:// or wss://, beside the embedded one. None: what happens on simnet stays on this machine.
relays = []"""

_REMARKS = {
    "simnet": "  # simnet sats are not money: a file on this machine says who has how many",
    "testnet": "  # Spark's regtest: test sats, not money",
}


def remark(network: str) -> str:
    """What a new home's file says beside its network, the two spaces before it included; or nothing."""
    return _REMARKS.get(network, "")


def render_default(network: str = DEFAULT_NETWORK) -> str:
    """The ``config.toml`` of a new home, commented. It loads to the defaults of ``network``."""
    return _HEAD.format(
        network=network,
        remark=remark(network),
        relays=_NO_RELAYS if network == "simnet" else _PUBLIC_RELAYS,
    )
