"""Sample text for calibrating 8-bit layers and for training the tokenizers of random checkpoints.

The text has prose on several subjects, code, numbers and several scripts, and was written for this project. Changing
the text changes every tokenizer trained on it, and the scales of every calibrated model.
"""

__all__ = ["SAMPLE_TEXT"]

SAMPLE_TEXT = """\
A search engine first collects a few hundred passages that might answer the query, and then a second model
reads each passage together with the query and says how well the two fit. The first step must be fast,
because it looks at everything; the second step may be slow, because it looks at little. Most of the
quality that people notice comes from the second step: the right passage was among the hundred, but it was
not among the first ten.

How much protein should a female eat? As a rule of thumb, an adult needs about 0.8 grams of protein for
every kilogram of body weight a day, so a woman of 60 kilograms needs 48 grams. During pregnancy, and when
training for a race, the need is higher: between 1.2 and 1.7 grams for each kilogram. Beans, lentils,
eggs, fish, yoghurt and nuts are good sources. What is the highest mountain in Europe? Where does the
river begin, and where does it end? When was the bridge built, who paid for it, and why did it fall? Which
of these two methods is better, and how do we know?

The old harbour lies to the north of the town. In the morning the boats return, the gulls shout above
them, and the women who buy the fish stand in a line along the quay. My grandfather worked there for forty
years. He used to say that the sea never gives the same answer twice, and that you should listen to it
anyway. Nobody in the town could remember a winter as cold as that one: the water in the basin froze, and
the children walked across the ice from one side of the harbour to the other.

Question: does the warranty cover water damage? Answer: no. The warranty covers faults of material and of
manufacture for a period of twenty-four months from the date of purchase. It does not cover damage by
water, by falling, or by the use of parts that we didn't supply. If you're not sure, don't open the case;
write to us, and we'll tell you what can be done. They've repaired it once, I'm told, and she'd rather not
send it again.

The kidney filters about one hundred and eighty litres of blood plasma every day. Nearly all of the water,
the glucose and the salts are taken back; what is left over becomes urine. When the pressure in the
vessels falls, the kidney releases renin, which leads to the formation of angiotensin; the vessels become
narrower and the pressure rises again. Patients with diabetes or with high blood pressure should have
their kidneys examined once a year.

The court held that the contract was not valid, because the seller had known of the defect and had said
nothing about it. The buyer may therefore return the goods and ask for the price, together with interest
from the day of payment. Whether the seller must also pay for the loss of profit is another question,
which the court left open. The central bank raised the interest rate by 0.25 percent, to 3.75 percent; the
price of bonds fell, the price of gold rose by 12 dollars to 1,946.30 dollars, and the index closed at
15,872 points, 1.4 percent below yesterday.

A transformer reads all tokens of a text at the same time. In every layer each token looks at the other
tokens, takes from them what it needs, and passes the result through a small network of its own. The model
has no sense of order unless we give it one: the position of a token is written into the vectors as a
rotation, and the angle between two rotated vectors depends only on the distance between the tokens. With
a mask, a token may look only at those before it; without the mask, it may look in both directions, which
is what we want when we rank passages.

question:who wrote the first program \n \n passage:The first published program was written in 1843.
question:what is the capital of the country \n \n passage:The capital is the largest city of the country.

def rank(query: str, passages: list[str], limit: int | None = None) -> list[int]:
    scores = [model.score(query, passage) for passage in passages]  # one forward pass for each
    order = sorted(range(len(scores)), key=lambda index: scores[index], reverse=True)
    return order[:limit]

for (let i = 0; i < rows.length; i++) { if (rows[i].id === null) { continue; } sum += rows[i].price * 1.19; }
SELECT name, COUNT(*) AS n FROM orders WHERE day >= '2024-01-31' GROUP BY name HAVING n > 10 ORDER BY n;
$ curl -s http://localhost:8000/v1/ranking -H 'Content-Type: application/json' -d '{"query": {"text": "a"}}'
{"rankings": [{"index": 2, "logit": 7.4375}, {"index": 0, "logit": -0.2617}, {"index": 1, "logit": -8.125}]}
<p class="note">Tea &amp; coffee, 50% off!</p> ~/.config/app.toml; C:\\Users\\me; x != y && (a || b);
a += b ** 2; #tag @you

Die Größe des Königreichs überraschte die Händler; sie fragten, ob die Straße über den Fluß führe.
Le garçon a mangé une pomme près de la fenêtre; où est passée la clé de l'hôtel? C'est déjà l'été, peut-être.
El niño soñó con una montaña pequeña. ¿Dónde está la estación? ¡Qué sorpresa!
A informação não está disponível.
Быстрая лиса перепрыгнула через ленивую собаку, и собака ничего не сказала. Где находится ближайшая станция?
Η γάτα κοιμάται στο παράθυρο. السلام عليكم، كيف حالك اليوم؟ शब्द और वाक्य। สวัสดีครับ שלום עולם
検索エンジンは最初に数百の文章を集め、次に質問と一緒に読みます。東京は日本の首都です。質問に答える文章を探しています。
搜索引擎首先收集几百个段落，然后模型把每个段落和问题一起阅读。北京是中国的首都。这个问题的答案在哪里？
검색 엔진은 먼저 수백 개의 문장을 모읍니다. 서울은 대한민국의 수도입니다. 질문에 대한 답을 찾고 있습니다.
🙂 👍🏽 🚀 ❤️ 👩‍🔬 🇪🇺 🙂🙂 👍 — “quoted” ‘single’ … • → ≤ ≥ ± × ÷ ∑ √ π ≈ ∞ € £ ¥ ° © ™ ½ ²
"""
