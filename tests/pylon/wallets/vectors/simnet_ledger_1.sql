BEGIN TRANSACTION;
CREATE TABLE accounts (
    account TEXT PRIMARY KEY, name TEXT NOT NULL, label TEXT NOT NULL, opened_at REAL NOT NULL,
    msats INTEGER NOT NULL, CHECK (msats >= 0 OR account = 'outside')
) STRICT, WITHOUT ROWID;
INSERT INTO "accounts" VALUES('024edfcf9dfe6c0b5c83d1ab3f78d1b39a46ebac6798e08e19761f5ed89ec83c10','bob','bob',1800000000.0,100000);
INSERT INTO "accounts" VALUES('039997a497d964fc1a62885b05a51166a65a90df00492c8d7cf61d6accf54803be','alice','alice',1800000000.0,899890);
INSERT INTO "accounts" VALUES('fees','fees','',0.0,110);
INSERT INTO "accounts" VALUES('outside','outside','',0.0,-1000000);
CREATE TABLE faults (
    id INTEGER PRIMARY KEY AUTOINCREMENT, wallet TEXT, side TEXT NOT NULL, kind TEXT NOT NULL,
    seconds REAL NOT NULL, jitter REAL NOT NULL, ends TEXT NOT NULL, remaining INTEGER NOT NULL
) STRICT;
INSERT INTO "faults" VALUES(3,'024edfcf9dfe6c0b5c83d1ab3f78d1b39a46ebac6798e08e19761f5ed89ec83c10','payer','no_route',0.0,0.0,'settled',1);
CREATE TABLE fee_model (base_msats INTEGER NOT NULL, parts_per_million INTEGER NOT NULL) STRICT;
INSERT INTO "fee_model" VALUES(10,1000);
CREATE TABLE invoices (
    payment_hash TEXT PRIMARY KEY, wallet TEXT NOT NULL REFERENCES accounts, key TEXT NOT NULL,
    bolt11 TEXT NOT NULL, preimage TEXT NOT NULL, msats INTEGER NOT NULL CHECK (msats > 0),
    description TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL,
    received_msats INTEGER NOT NULL DEFAULT 0, settled_at REAL, UNIQUE (wallet, key)
) STRICT, WITHOUT ROWID;
INSERT INTO "invoices" VALUES('42e6ba1d63cd370e33d9ca73f70a64875e721091574dcd3767285d34aa92012e','024edfcf9dfe6c0b5c83d1ab3f78d1b39a46ebac6798e08e19761f5ed89ec83c10','job-0','lnsb1u1p45n5spsp5002agljydl8v9g7cz9ekzy890qduen4xjemzucgkcm5ujtvehu6spp5gtnt58tre5msuv7eefelwznysa08yyy32axu6dm89pwnf25jqyhqdqgdfhkygpscqpj9qrsgqz95va8ysgjcfl9prs4eks2kv7q8tevnrgsn7ecnn4d96xmtq2yd8dwk6rsrgt6gz04fh6e7wljwrpeu3xzl773s34rq9wmc2p4hf80spmmq4xf','f5b165224a58b791df6af1d8303e61cdc4bb86c3d1c427103c344c4189eb2f1e',100000,'job 0',1800000001.0,1800003601.0,100000,1800000001.0);
INSERT INTO "invoices" VALUES('6a793ae1ce98c6dda6ee34753b638abcf8a518c8bce95090c90028fb90173e60','024edfcf9dfe6c0b5c83d1ab3f78d1b39a46ebac6798e08e19761f5ed89ec83c10','job-1','lnsb1u1p45n5spsp5shyjfs6ew9jvffs93gq9sx3zkgk72prjgv7ju387mzmtsdt7gnxspp5dfun4cwwnrrdmfhwx36nkcu2hnu22xxghn54pyxfqq50hyqh8esqdqgdfhkygp3cqpj9qrsgqldrdhszvag4nxac45z4mxzpem6m2etn6rk5qlsz7ux5yuqwknnmp36qrgan8kyv6u9m8ms7dam2rr9dd677jth9q4rkytga5htg6axcqkl8fce','8c2e0718822ce47ca8c74107e66cb0e4b2b3f4d58d82ca6386d2c96e760e819b',100000,'job 1',1800000001.0,1800003601.0,0,NULL);
INSERT INTO "invoices" VALUES('707e0e21243f4600670991b4932c107d39f6aea823c61c8bcbceea045d512912','024edfcf9dfe6c0b5c83d1ab3f78d1b39a46ebac6798e08e19761f5ed89ec83c10','job-3','lnsb1u1p45n5spsp55pnpju808aklq9yda4lg5dyg35uke2emsrf87kxlzydrk00jgkkspp5wplqugfy8arqqecfjx6fxtqs05uldt4gy0rpez7tem4qgh239yfqdqgdfhkygpncqpj9qrsgqemde4v2vx4nxzrmply4psc52ur6n0a0dy6wv08ctuvuxl99y3xwh0h4dzker594xfsljwyvuc6fafx8j8yjz5lwpdntmscysvumv8wspl96fzt','df0e7337420c13f8f5d40f6ce079d1b987376f07bcb81287fdc8c0388fe881c3',100000,'job 3',1800000001.0,1800003601.0,0,NULL);
INSERT INTO "invoices" VALUES('eee397d93a25e8adde4133c26c6238d8a3d231710735051d453a1306cb1a06e6','024edfcf9dfe6c0b5c83d1ab3f78d1b39a46ebac6798e08e19761f5ed89ec83c10','job-2','lnsb1u1p45n5spsp5hx0gxpka5ay2v8szn29r7s2mqf9pgm8smx9f3cw0nxtxr7t8hkhspp5am3e0kf6yh52mhjpx0pxcc3cmz3ayvt3qu6s28298gfsdjc6qmnqdqgdfhkygpjcqpj9qrsgqn09ayuv0z0kdaxw93t62j7hq3upuzuv4ll7uzanx3a9v2skuwpsz63du75gt7dhqhzr8ghxxsjf5nzzdref5a8u7g2xew6yffj5v7hqq9e3twk','3129903ac1d45597a242fdf11f8f2b1a39f3c3e693114351dcbed407e3e6b605',100000,'job 2',1800000001.0,1800003601.0,0,NULL);
CREATE TABLE news (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, wallet TEXT NOT NULL, payment INTEGER NOT NULL REFERENCES payments
) STRICT;
INSERT INTO "news" VALUES(1,'039997a497d964fc1a62885b05a51166a65a90df00492c8d7cf61d6accf54803be',1);
INSERT INTO "news" VALUES(2,'039997a497d964fc1a62885b05a51166a65a90df00492c8d7cf61d6accf54803be',2);
INSERT INTO "news" VALUES(3,'024edfcf9dfe6c0b5c83d1ab3f78d1b39a46ebac6798e08e19761f5ed89ec83c10',3);
INSERT INTO "news" VALUES(4,'039997a497d964fc1a62885b05a51166a65a90df00492c8d7cf61d6accf54803be',4);
INSERT INTO "news" VALUES(5,'039997a497d964fc1a62885b05a51166a65a90df00492c8d7cf61d6accf54803be',5);
CREATE TABLE payments (
    id INTEGER PRIMARY KEY AUTOINCREMENT, wallet TEXT NOT NULL REFERENCES accounts, direction TEXT NOT NULL,
    state TEXT NOT NULL, payment_hash TEXT NOT NULL, key TEXT, msats INTEGER NOT NULL, fee_msats INTEGER NOT NULL,
    created_at REAL NOT NULL, settled_at REAL, preimage TEXT, bolt11 TEXT, description TEXT NOT NULL,
    outside INTEGER NOT NULL DEFAULT 0, waits INTEGER NOT NULL DEFAULT 0, resolves_at REAL, resolves_to TEXT,
    CHECK ((state = 'settled') = (settled_at IS NOT NULL)), CHECK ((state = 'pending') = (resolves_at IS NOT NULL))
) STRICT;
INSERT INTO "payments" VALUES(1,'039997a497d964fc1a62885b05a51166a65a90df00492c8d7cf61d6accf54803be','received','settled','',NULL,1000000,0,1800000000.0,1800000000.0,NULL,NULL,'faucet',1,0,NULL,NULL);
INSERT INTO "payments" VALUES(2,'039997a497d964fc1a62885b05a51166a65a90df00492c8d7cf61d6accf54803be','sent','settled','42e6ba1d63cd370e33d9ca73f70a64875e721091574dcd3767285d34aa92012e','pay-0',100000,110,1800000001.0,1800000001.0,'f5b165224a58b791df6af1d8303e61cdc4bb86c3d1c427103c344c4189eb2f1e','lnsb1u1p45n5spsp5002agljydl8v9g7cz9ekzy890qduen4xjemzucgkcm5ujtvehu6spp5gtnt58tre5msuv7eefelwznysa08yyy32axu6dm89pwnf25jqyhqdqgdfhkygpscqpj9qrsgqz95va8ysgjcfl9prs4eks2kv7q8tevnrgsn7ecnn4d96xmtq2yd8dwk6rsrgt6gz04fh6e7wljwrpeu3xzl773s34rq9wmc2p4hf80spmmq4xf','job 0',0,0,NULL,'settled');
INSERT INTO "payments" VALUES(3,'024edfcf9dfe6c0b5c83d1ab3f78d1b39a46ebac6798e08e19761f5ed89ec83c10','received','settled','42e6ba1d63cd370e33d9ca73f70a64875e721091574dcd3767285d34aa92012e',NULL,100000,0,1800000001.0,1800000001.0,'f5b165224a58b791df6af1d8303e61cdc4bb86c3d1c427103c344c4189eb2f1e','lnsb1u1p45n5spsp5002agljydl8v9g7cz9ekzy890qduen4xjemzucgkcm5ujtvehu6spp5gtnt58tre5msuv7eefelwznysa08yyy32axu6dm89pwnf25jqyhqdqgdfhkygpscqpj9qrsgqz95va8ysgjcfl9prs4eks2kv7q8tevnrgsn7ecnn4d96xmtq2yd8dwk6rsrgt6gz04fh6e7wljwrpeu3xzl773s34rq9wmc2p4hf80spmmq4xf','job 0',0,0,NULL,NULL);
INSERT INTO "payments" VALUES(4,'039997a497d964fc1a62885b05a51166a65a90df00492c8d7cf61d6accf54803be','sent','failed','6a793ae1ce98c6dda6ee34753b638abcf8a518c8bce95090c90028fb90173e60','pay-1',100000,0,1800000002.0,NULL,NULL,'lnsb1u1p45n5spsp5shyjfs6ew9jvffs93gq9sx3zkgk72prjgv7ju387mzmtsdt7gnxspp5dfun4cwwnrrdmfhwx36nkcu2hnu22xxghn54pyxfqq50hyqh8esqdqgdfhkygp3cqpj9qrsgqldrdhszvag4nxac45z4mxzpem6m2etn6rk5qlsz7ux5yuqwknnmp36qrgan8kyv6u9m8ms7dam2rr9dd677jth9q4rkytga5htg6axcqkl8fce','job 1',0,0,NULL,'failed');
INSERT INTO "payments" VALUES(5,'039997a497d964fc1a62885b05a51166a65a90df00492c8d7cf61d6accf54803be','sent','pending','eee397d93a25e8adde4133c26c6238d8a3d231710735051d453a1306cb1a06e6','pay-2',100000,110,1800000003.0,NULL,NULL,'lnsb1u1p45n5spsp5hx0gxpka5ay2v8szn29r7s2mqf9pgm8smx9f3cw0nxtxr7t8hkhspp5am3e0kf6yh52mhjpx0pxcc3cmz3ayvt3qu6s28298gfsdjc6qmnqdqgdfhkygpjcqpj9qrsgqn09ayuv0z0kdaxw93t62j7hq3upuzuv4ll7uzanx3a9v2skuwpsz63du75gt7dhqhzr8ghxxsjf5nzzdref5a8u7g2xew6yffj5v7hqq9e3twk','job 2',0,0,1800000063.0,'settled');
CREATE UNIQUE INDEX payments_once ON payments (payment_hash) WHERE direction = 'sent' AND state <> 'failed';
CREATE UNIQUE INDEX payments_key ON payments (wallet, key) WHERE direction = 'sent';
CREATE INDEX payments_time ON payments (wallet, created_at, id);
CREATE INDEX payments_due ON payments (resolves_at) WHERE state = 'pending';
CREATE INDEX news_wallet ON news (wallet, seq);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('payments',5);
INSERT INTO "sqlite_sequence" VALUES('news',5);
INSERT INTO "sqlite_sequence" VALUES('faults',3);
COMMIT;
