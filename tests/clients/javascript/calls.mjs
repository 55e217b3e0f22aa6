// Ranks with one JavaScript client and prints, as JSON, the results or the error that the client's user gets.
// Reads a call from the first argument: {client, url, model, query, documents, options}.

import { createCohere } from "@ai-sdk/cohere";
import { rerank } from "ai";
import { CohereClient, CohereClientV2 } from "cohere-ai";
import { VoyageAIClient } from "voyageai";

const KEY = "junk";

const CLIENTS = {
  async ai({ url, model, query, documents, options }) {
    const cohere = createCohere({ apiKey: KEY, baseURL: `${url}/v2` });
    const answer = await rerank({ model: cohere.reranking(model), query, documents, ...options });
    return answer.ranking.map((one) => ({ index: one.originalIndex, score: one.score, document: one.document }));
  },

  async cohereV1({ url, model, query, documents, options }) {
    const client = new CohereClient({ token: KEY, environment: url });
    const answer = await client.rerank({ model, query, documents, ...options });
    return answer.results.map((one) => ({ index: one.index, score: one.relevanceScore, document: one.document }));
  },

  async cohereV2({ url, model, query, documents, options }) {
    const client = new CohereClientV2({ token: KEY, environment: url });
    const answer = await client.rerank({ model, query, documents, ...options });
    return answer.results.map((one) => ({ index: one.index, score: one.relevanceScore }));
  },

  async voyage({ url, model, query, documents, options }) {
    const client = new VoyageAIClient({ apiKey: KEY, environment: `${url}/v1` });
    const answer = await client.rerank({ model, query, documents, ...options });
    return answer.data.map((one) => ({ index: one.index, score: one.relevanceScore, document: one.document }));
  },
};

const call = JSON.parse(process.argv[2]);
try {
  console.log(JSON.stringify({ results: await CLIENTS[call.client](call) }));
} catch (error) {
  const { name, statusCode, message } = error;
  console.log(JSON.stringify({ error: { name, class: error.constructor.name, statusCode, message } }));
}
